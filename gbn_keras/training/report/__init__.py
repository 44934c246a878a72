"""Tables, pictures and the page on what came out."""
