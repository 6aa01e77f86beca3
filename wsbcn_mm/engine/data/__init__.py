"""Data code that both tasks share: loading speed, the watchdog, archives, preparation and contact sheets."""
