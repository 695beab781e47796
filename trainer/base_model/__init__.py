"""The frozen, usually 4-bit base: loaded, quantized, kept and watched."""
