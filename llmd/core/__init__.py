"""Pure decisions: no I/O, no trio, no clock, no logging; `now` is handed in."""
