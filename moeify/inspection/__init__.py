"""What is in a checkpoint, dense or mixture, and where its tokens go."""
