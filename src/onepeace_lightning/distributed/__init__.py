"""Running over many devices: ``plan`` for any module, ``strategy`` for Lightning."""
