"""What coded packets say of themselves, read from their first bits: bytes and numbers only, no file and no decoder."""
