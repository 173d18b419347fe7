"""What a trained network does: where it looks, pictures of it, and a report of its run."""
