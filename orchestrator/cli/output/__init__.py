"""How answers look: tables, bars, escaped text, the streams of a shell."""
