"""Two small data sets in the formats of the real ones, drawn from data that ships with scikit-learn."""
