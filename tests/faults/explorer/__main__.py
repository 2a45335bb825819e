from tests.faults.explorer.command import main

main()
