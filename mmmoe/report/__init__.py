"""Reports: plots and one offline page, read from the files of a run."""
