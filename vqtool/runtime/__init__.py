"""Services for all packages: distributed processes, threads, devices, precision, signals, files, memory, progress."""
