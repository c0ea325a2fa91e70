"""The Responses protocol without I/O, clock or chance: values in, values out."""
