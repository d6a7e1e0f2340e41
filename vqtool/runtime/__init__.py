"""Services shared by all packages: processes, threads, devices, signals, files, progress and settings."""
