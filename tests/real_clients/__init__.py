"""The HTTP libraries that apps upload with: the real ones where they can be had, their bytes where not."""
