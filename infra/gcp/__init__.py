"""The functions on Google Cloud: three Cloud Run functions from source, a schedule, secrets by reference."""
