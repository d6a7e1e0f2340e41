"""Use of a trained model: encode, decode and evaluate arrays and files, write semantic ids, measure rate-distortion."""
