"""What is seen of units that are not held: candidates, gradients, running means, other ranks."""
