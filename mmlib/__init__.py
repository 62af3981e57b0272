"""A small PyTorch library that shows what happens in a neural network before and while it trains.

Every concept is one definition in one module; nothing is imported, read, seeded or set by importing the package.
This is the map, in reading order. A module imports only from those above it.

What a network is made of
    rng          randomness is an argument: named streams under one seed
    gaussian     expectations under the standard normal distribution
    activations  phi, its derivative, and the gains that keep a signal's scale
    init         initialisation schemes as data
    losses       the cross-entropy
    layers       Linear, Embedding, Flatten, Nonlinearity, Maxout

Data, and the loss to beat
    examples     contexts, and the symbol that follows each
    baselines    what counting alone can reach
    data         names as text, as examples, as minibatches

A model, or many as one
    undisturbed  looking at a model without leaving a trace on it
    norm         batch, layer, group and RMS normalisation
    models       the running example, and names drawn from it
    ensemble     R models as one, with a leading axis

One run
    history      what a run leaves behind
    checkpoint   a run on disk, to go on with
    progress     how far it is, for a person who watches
    trace        one forward and backward pass laid open
    train        gradient descent as an iterator of steps, and the book-keeping around it

What is measured, and what theory predicts
    stats        one tensor to one number
    meanfield    the same numbers, expected over random weights
    noise        rounding noise on purpose
    table        rows of numbers, to read
    comparison   two recipes, paired by seed, over learning rates

The derivation
    scalar       a scalar that remembers how it was made
    backward     the same gradients by hand

The diagnosis, drawing, practice
    checkup      findings about any module
    plots        numbers onto Axes
    moving       figures that move under the reader's hand
    show         a definition's own source
    exercise     a reader's answer against cases that catch the usual mistakes
"""

__version__ = "1.1.0"
