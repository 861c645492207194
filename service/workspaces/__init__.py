"""What people work in: whether an IDE can use it, and how to connect one."""
