"""What several studies share: rows of CSV files, tables in READMEs, a study on scenes."""
