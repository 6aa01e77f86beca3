"""Small data sets drawn from data that ships in scikit-learn, in the formats of the real ones."""
