"""Metrics accumulated over a pass: usage, perplexity, reconstruction quality, collisions, latent statistics."""
