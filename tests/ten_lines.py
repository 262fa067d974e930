"""The ten lines of the front page, short: what a user of any system runs first. Run by the CI on Windows and macOS, and by hand."""
import os, tempfile


def main():
    os.environ.setdefault('LIBKD_HOME', tempfile.mkdtemp())
    os.chdir(tempfile.mkdtemp())
    from libkd.all import LogitCache, cluttered_digits, distill_learner, fit_teacher, image_dls, scoreboard
    dls = image_dls(cluttered_digits(train=60, unlabelled=60, valid=50, test=50))
    conv, inv = (fit_teacher(name, dls, epochs=2, check=False) for name in ('resnet_mini', 'rednet_mini'))
    for _ in range(2): cache = LogitCache.build('cache', dls, [conv, inv], views=2, check=False)     # the second call opens it
    plain, student = distill_learner(dls, 'civt_pico'), distill_learner(dls, 'civt_pico', teachers=cache)
    for learn in (plain, student):
        with learn.no_bar(): learn.fit_one_cycle(1)
    print(scoreboard([conv, inv, plain, student]))
    print(cache.verify(), 'files are whole')


if __name__ == '__main__': main()      # worker processes of Windows import this file again
