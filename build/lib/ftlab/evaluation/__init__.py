"""What a trained network answers, and how good the answers are: generation, text metrics, and what was forgotten."""
