"""The data path that both tasks share: loader speed, progress, archives and contact sheets."""
