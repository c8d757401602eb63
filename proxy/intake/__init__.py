"""From a request to files, by one strict reading that nothing downstream gets to repeat."""
