"""On-disk formats: run directory, checkpoint, model.safetensors, index file and manifest."""
