"""Reading, planning and writing safetensors checkpoints in constant memory."""
