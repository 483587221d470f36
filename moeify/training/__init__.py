"""What people's own training scripts use: what is trained, what routers do meanwhile, 4 bit, a projector."""
