"""Code that several studies share: result files, tables in READMEs, recipes, a command line."""
