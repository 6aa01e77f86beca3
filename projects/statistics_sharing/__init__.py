"""What sharing normalisation statistics between ranks costs."""
