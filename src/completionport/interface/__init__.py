"""What a program sees of ports, handles and their operations, and knows no engine."""
