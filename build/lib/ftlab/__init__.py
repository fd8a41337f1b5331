"""ftlab: fine-tuning of language models with numbers one can trust."""

__version__ = "0.1.0"
