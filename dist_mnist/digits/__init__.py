"""Digits in pictures: found, and made as the images of MNIST were."""
