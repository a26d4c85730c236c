"""The arena: every few-step method with the same network, batch, optimizer and budget of network
passes, judged alike.
"""
