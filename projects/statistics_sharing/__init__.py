"""What sharing normalisation statistics between ranks costs, and what it would cost on many."""
