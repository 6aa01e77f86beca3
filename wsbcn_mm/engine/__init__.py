"""The mmengine glue: registration, launch, and what a stock Runner lacks for micro-batches."""
