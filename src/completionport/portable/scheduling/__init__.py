"""Who waits, who works and who is let go; the packets and the timers."""
