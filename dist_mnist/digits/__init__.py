"""Digits in any picture: found, made like MNIST, and read."""
