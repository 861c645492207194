"""AdamW over masters in fp32, and its kernels."""
