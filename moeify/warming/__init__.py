"""Getting routers ready: fitted to data without gradients, then trained."""
