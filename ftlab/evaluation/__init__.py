"""What a trained network answers, and how good the answers are: generation and text metrics."""
