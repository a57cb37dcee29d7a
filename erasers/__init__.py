"""What is changed in a model, and why. Knows torch, never the program that hosts the model."""
