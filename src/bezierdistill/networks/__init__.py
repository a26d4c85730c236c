"""Networks ``net(x, s, t, cond)`` that predict the average velocity between the times s and t; on
the diagonal, the velocity.
"""
