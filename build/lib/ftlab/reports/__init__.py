"""What people read: what became of a dataset (`data_card`)."""
