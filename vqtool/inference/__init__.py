"""Use a trained model: encode, decode, evaluate, and write index files."""
