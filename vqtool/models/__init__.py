"""The autoencoder: encoders, decoders, losses, and the normalisation of inputs and outputs."""
