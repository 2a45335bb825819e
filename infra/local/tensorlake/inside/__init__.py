"""The program inside each sandbox. Standard library only; it never imports anything outside this package."""
