"""Two small data sets in the formats of the real ones, made from data that ships with scikit-learn."""
