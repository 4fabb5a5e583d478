"""What things cost, measured beside what others do."""
