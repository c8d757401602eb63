"""pictrs-classifier: looks at pictures and says what it sees, as named numbers. It keeps nothing."""
