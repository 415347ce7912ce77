"""`report.html`: a run, or a sweep, on one page that needs neither a network nor a server.

page              the file, from sections of plain values and the template in page.html, page.css and *.js
run_page          the sections of a run on images
sweep_page        the sections of a sweep
probe, maps, pictures  the predictions of a linear probe; embeddings in the plane; small pictures of images
"""
